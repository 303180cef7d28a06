"""The sample application that `make demo` and the compose file run, and the run that puts it and the layer to the proof.

`app.py` is what a user would write. The rest is the demo run (`run.py`), which publishes, watches, replays and then judges what
happened by a ledger that the handlers wrote (`judge.py`): nothing that the layer says of itself counts as evidence.
"""
