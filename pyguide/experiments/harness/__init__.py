"""What all experiments share: the grid, processes, run folder, resume, report and options.

An experiment is one module of :mod:`pyguide.experiments`; ``deep_fcn.py`` is the example. It
declares

- a :class:`~pyguide.experiments.harness.config.Config` with its own options,
- a :class:`~pyguide.experiments.harness.experiment.Setting` for each scale: data, target, guide,
  arms with the paper's results, metric, and what of the training differs from the default,
- an :class:`~pyguide.experiments.harness.experiment.Experiment` named ``EXPERIMENT``.

====================  ==========================================================
``config``            what a run depends on, and its command-line options
``experiment``        what an experiment declares
``mnist1d``           the default scale's data; ``image_folder``: the paper scale's
``grid``              arms x learning rates x seeds, as tasks
``trainer``           the training of one model, stopped and continued
``jobs``              a guide, or a target in one arm with one seed
``checkpoint``        the state of an unfinished job
``processes``         jobs as parallel processes; ``progress``: their bar
``folder``            the files of a run
``run``               sweep, final runs, results
``report``            summary and table; ``curves``: the picture
``command``           the command line
====================  ==========================================================
"""
