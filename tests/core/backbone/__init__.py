"""Tests of core/backbone."""
