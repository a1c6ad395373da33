"""What `ovs bench` measures: every pipeline and every bundled model, beside the bare session and the alternatives.

`subjects` says what there is to measure, `measure` runs it, `report` and `plots` show it. Each side of a comparison,
ours too, is a process of its own (`workers`), so that start, memory and threads are those of that side alone; they are
asked in turns. `environments` makes the interpreters of the alternatives, `forms` the Paddle archives that they read.
"""
