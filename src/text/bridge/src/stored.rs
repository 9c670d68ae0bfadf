//! Checks of what a template stores. minijinja prints, compares and hashes values by recursion that
//! fuel does not see: a list that holds itself has no end, and `[a, a]` sixty times over is a tree of
//! 2^60 leaves. So a stored value has a bounded depth, its nodes are counted against the render's
//! budget, and no namespace stores a namespace, which is the only way to a circle.

use std::cell::Cell;

use minijinja::value::{Value, ValueKind};
use minijinja::{Environment, Error, ErrorKind};

use crate::python::runtime;

const MAX_DEPTH: usize = 100;

thread_local! {
    /// Nodes that stores of this render may still look at.
    static BUDGET: Cell<u64> = const { Cell::new(0) };
}

pub fn set_budget(nodes: u64) {
    BUDGET.set(nodes);
}

pub fn install(environment: &mut Environment) {
    environment.add_function("_stored", |value: Value| checked(value, false));
    environment.add_function("_kept", |value: Value| checked(value, true));
}

fn is_namespace(value: &Value) -> bool {
    value.as_object().is_some_and(|object| object.type_name().contains("Namespace"))
}

/// `in_namespace`: the value becomes an attribute of a namespace.
fn checked(value: Value, in_namespace: bool) -> Result<Value, Error> {
    let mut left = BUDGET.get();
    let mut open = vec![(value.clone(), 0)];
    while let Some((node, depth)) = open.pop() {
        if is_namespace(&node) {
            if in_namespace || depth > 0 {
                return Err(runtime("a namespace cannot be stored inside of a value"));
            }
            continue;
        }
        let is_map = node.kind() == ValueKind::Map;
        if !is_map && node.kind() != ValueKind::Seq {
            continue;
        }
        let length = node.len().unwrap_or(0) as u64;
        if depth >= MAX_DEPTH {
            return Err(runtime("a value is nested too deeply"));
        }
        if length > left {
            return Err(Error::from(ErrorKind::OutOfFuel));
        }
        left -= length;
        for item in node.try_iter()? {
            let child = if is_map { node.get_item(&item)? } else { item };
            open.push((child, depth + 1));
        }
    }
    BUDGET.set(left);
    Ok(value)
}
