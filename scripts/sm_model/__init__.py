"""A model of an SM that says, from what the assembler made of a kernel, how fast the kernel will be.

- `sass`: what nvdisasm prints: functions, loops, and the path through the main loop in its steady state
- `machine`: four sub-cores that issue the instructions of that path
- `cards`: what is known of targets and cards, with every assumption that is a number
- `kernels`: what the launches say of each kernel, and what comes of both: registers, residents, share of the peak
- `schedule`: blocks on a card: waves, tail, the order of tiles
- `cases`: operations on shapes: those of the bench, by its names
- `step`: a training step of an 8B model
- `tests`: the model on code whose answer is known
"""
