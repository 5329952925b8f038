"""The protocol by which Label Studio asks a model for predictions, under `/label-studio`.

An adapter: clicks and boxes become a request to segment, a task becomes a request to inspect, and the answers become
Label Studio's regions.
"""
