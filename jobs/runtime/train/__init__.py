"""Run the training loop in workers of Ray Train.

    worker_group    start the workers, or train in this process if one device is enough
    waiting         say which nodes a training waits for, and how long
    worker          what one worker does: open the data, build the family, fit
    stop_signal     a flag that asks every worker to save and stop
    prometheus      gauges on Ray's metrics page
"""
