"""The Kopf operator that turns an SLOService into replicas and gateways (not built yet)."""
