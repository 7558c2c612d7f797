"""Training and scoring: the loop, what it works with, and the processes that share it.

May import `cmt`, `data`, `aqr`, `report` and `configs`; not the commands beside it.
"""
