"""A Hydra launcher that runs the jobs of a multirun in containers on Modal.

It knows nothing of the task but its name, and would serve any other Hydra app: ``hydra/launcher=nsm_modal``.
"""
