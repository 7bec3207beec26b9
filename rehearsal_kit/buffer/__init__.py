"""The distributed rehearsal buffer, usable alone in any training loop under torchrun.

    mini-batch --offer--> store of this rank --headers of all--> plan of the draw --all-to-all--> rows
    (training thread)     (background thread: all of this while the step trains)           (next step)

Begin at distributed_buffer.py, then background_job.py, which holds that order, and draw_plan.py, which says
why the draw has no bias. Where rows lie on a GPU: row_placement.py, row_transport.py. Imports base alone.
"""
