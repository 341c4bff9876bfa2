//! Bad days of people, networks and clocks: each ends in a condition, an Event and a next step.

mod machines;
mod people;
mod storage;
