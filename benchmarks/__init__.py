"""How fast geventpool is, against its peers and against the least that a fair pool must do."""
