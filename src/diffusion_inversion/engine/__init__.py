"""How work is made durable and visible: commit protocol and manifest, run lock, progress."""
