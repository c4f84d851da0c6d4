"""Pure state machines over readings; the first ones come with windows and alarms."""
