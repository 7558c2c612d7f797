"""What users type: the command line, submission to a cluster, the training function of a sweep.

Joins `sweeps`, which decides, with `aqr_model`, which trains; they do not know each other.
Importing anything here loads neither Ray nor torch nor MLflow: the command line answers at once.
"""
