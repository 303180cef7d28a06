"""Chaos, with a judge: faults strike workers and brokers while jobs flow, and a pure checker reads what happened.

    python -m tests.chaos --minutes 30 --seed 7      # the same seed: the same schedule of faults

`history` is what happened, written down outside of streamjobs; `checker` judges it; `schedule` decides which faults come when;
`nemesis` does them to `workers` and a broker, while `publisher` publishes jobs of `app`; `evidence` reads what the topics hold at
the end; `run` ties them together.
"""
