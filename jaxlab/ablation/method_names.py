"""The names of the searches; standard library only, so that a command line knows them.

`methods.py` says what each of them does.
"""

# Name -> what predicts the losses that it compares.
METHODS = {
    "best single": "merged",
    "enumerate": "merged",
    "greedy": "merged",
    "gradient": "merged",
    "enumerate ensemble": "ensemble",
    "convex": "ensemble",
}
