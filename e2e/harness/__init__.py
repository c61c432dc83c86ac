"""What the stories share: a cluster at the end of kubectl, services in it, and load on them."""
