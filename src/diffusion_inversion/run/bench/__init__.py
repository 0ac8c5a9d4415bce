"""Measurements that take minutes and gigabytes: `dinv bench`."""
