"""The rules that come with iotflow: a YAML file for each profile."""
