"""A network as data: intervals and regions, layers, the table of operators, what a part of the output reads."""
