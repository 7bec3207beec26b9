"""One step and one evaluation: the learner, losses, metrics, strategies, networks, ONNX.

Begin at learner.py, then joint_step.py: the loss of a step over the samples of all ranks, and summed_step.py:
what it came to. What training changes, and checkpoints hold, lies in learner_state.py. Imports data, buffer,
record and base; knows no run.
"""
