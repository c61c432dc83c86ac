"""`sloserve up`: the same SLOService manifest on this machine, processes instead of pods."""
