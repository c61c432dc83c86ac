"""Recording and alert rules of a service, as data (the observability issue fills this)."""
