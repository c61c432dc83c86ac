"""The operator: turns an SLOService into replicas and gateways, and tells how it fares."""
