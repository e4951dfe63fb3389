"""The steps of `teacher.parser`: text, rules for one line, assembly of lines, specifications, filters."""
