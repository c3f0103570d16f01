from hypothesis import settings

# The same examples on every run; no deadline, because machines are shared.
settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.load_profile("repeatable")
