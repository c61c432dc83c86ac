"""What every test shares."""

from hypothesis import settings

# A busy machine is not a bug: no test asserts wall time, hypothesis' deadline included.
settings.register_profile("sloserve", deadline=None)
settings.load_profile("sloserve")
