"""
The service on a virtual clock: real routing, scheduler and policy, a step model for a runner.

`run.simulate` runs one window, `run.find_capacity` searches the highest rate that holds.
"""
