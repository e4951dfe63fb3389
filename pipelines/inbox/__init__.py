"""The inbox: documents that arrive during the day and are learned at night."""
