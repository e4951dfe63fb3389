"""The night: everything new is routed, learned, checked for what it cost, and promoted or not."""
