"""Run the training loop, in this process or in workers of Ray Train.

    worker_group    start several workers
    waiting         say which nodes a training waits for, and how long
    worker          what one worker does: open the data, build the family, fit
    stop_signal     a flag that asks every worker to save and stop
    prometheus      gauges on Ray's metrics page
"""
