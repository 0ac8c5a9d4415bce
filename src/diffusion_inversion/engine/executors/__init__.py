"""Workers that share a run: each is a `dinv` command with `--join`, and the run folder alone says what is done.

An executor starts workers and says how they ended (`local.py`, `ray.py`, `slurm.py`); `executors/watch.py` starts those
again that died.
"""
