"""Pairs written by a language model that is given a graph's facts."""
