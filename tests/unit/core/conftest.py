from hypothesis import settings

# A slow, shared machine is not a defect: no example has a deadline of its own.
settings.register_profile("unhurried", deadline=None)
settings.load_profile("unhurried")
