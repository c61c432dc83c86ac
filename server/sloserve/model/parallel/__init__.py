"""One model over several processes of a machine: who holds what, who tells whom."""
