"""Word between the launcher and its agents, one on each host of a job that takes several.

`wire` carries it, `head` is the launcher's end, `agent` a host's.
"""
