"""Runs of a process pool without the start of an interpreter for each.

`handoff` is the process that the worker starts for a run, `parent` the one that has imported the libraries and forks a
child for the run, `child` what that does; `starting` is the worker's side. All of it is on one machine, of one user.
"""
