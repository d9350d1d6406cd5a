//! Clients that hold what they can.
