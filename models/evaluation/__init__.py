"""Measure how well models segment fruit, and write a report.

A protocol is one file: `segmentation` compares the answers of every candidate with the annotation, and returns a
`results.Group`. To add one, write its file, describe its measures in `measures`, which gives them a column and a
definition in the report, and add a macro to `report.html.j2` where it needs a figure or a table of its own.
"""
