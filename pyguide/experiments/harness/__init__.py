"""What all experiments share: the grid, processes, run folder, resume, report and options.

An experiment is one module of :mod:`pyguide.experiments` with an
:class:`~pyguide.experiments.harness.experiment.Experiment` named ``EXPERIMENT``:
``deep_fcn.py`` is the example.
"""
