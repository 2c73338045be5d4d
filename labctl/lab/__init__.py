"""The whole: plan, up, down, status and everything people do with a lab that is up.

Import from the modules named here; nothing heavy is loaded before a verb needs it:

- labctl.lab.model: Options, ProfileSource, LabStatus, NodeStatus, PlanResult, UpResult, Leftover
- labctl.lab.up: plan(source, options, emit), up(source, options, emit)
- labctl.lab.down: down(name, options, emit), down_all(options, emit), collect(options, remove)
- labctl.lab.status: labs(options), status(name, options), find(target, options), inspect(target, options)
- labctl.lab.nodes: machine, start, stop, restart, pause, resume, wait, console, logs, stats
- labctl.lab.checks, labctl.lab.compare, labctl.lab.drawing (graph), labctl.lab.doctor
"""
