//! Methods of Python's str, list and dict.

use minijinja::{Error, State, Value};
use minijinja_contrib::pycompat;

pub fn unknown_method(
    state: &mut State,
    value: &Value,
    method: &str,
    args: &[Value],
) -> Result<Value, Error> {
    pycompat::unknown_method_callback(state, value, method, args)
}
