"""What does privacy cost? Many private runs and those beside them that are not, one table, one curve (dsm-sweep)."""
