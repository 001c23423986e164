"""The APIs of the libraries that geventpool descends from, one package each, over the one engine.

A program that uses one of them changes an import; ``docs/moving.md`` says what else changes.
"""
