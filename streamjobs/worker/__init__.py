"""The shell of a worker: one module per stage, in the order in which a job meets them."""


class Stopped(Exception):
    """A loop can't go on; its process must be replaced."""
