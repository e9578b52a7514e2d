"""Searching for better settings: the space, a trial, the judgement of what was found. Knows no Ray.

    space      which keys of the recipe, and over what; typed and checked before anything starts
    trial      one choice of settings, trained and measured in stages that a kill cannot lose
    rehearsal  a function in its place
    metrics    what a trial is measured by, and which way is better
    heredity   whether weights can be handed on
    population what the record says of who took over whose weights
    search     a search as a value: its address, its folder, its record of trials
    chronicle  what MLflow is told
    conclusion what comes of it, as documents
    findings   the best, the front, the importance of each key, and what confirmation says
"""
