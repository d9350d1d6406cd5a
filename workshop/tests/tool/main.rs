//! The tool as a whole: in its own image, and before a talk.

mod boxed;
mod ready;
