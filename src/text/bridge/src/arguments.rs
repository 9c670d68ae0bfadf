//! Arguments of filters and methods, by position or by name as in Python.

use minijinja::value::{Kwargs, Rest};
use minijinja::{Error, ErrorKind, Value};

pub struct Arguments {
    values: Vec<Option<Value>>,
    names: &'static [&'static str],
}

impl Arguments {
    pub fn new(
        names: &'static [&'static str],
        positional: Rest<Value>,
        named: Kwargs,
    ) -> Result<Arguments, Error> {
        if positional.len() > names.len() {
            return Err(Error::from(ErrorKind::TooManyArguments));
        }
        let mut values: Vec<Option<Value>> = positional.iter().cloned().map(Some).collect();
        for name in &names[values.len()..] {
            values.push(if named.has(name) { Some(named.get(name)?) } else { None });
        }
        named.assert_all_used()?;
        Ok(Arguments { values, names })
    }

    pub fn from_slice(names: &'static [&'static str], args: &[Value]) -> Result<Arguments, Error> {
        let (positional, named) = minijinja::value::from_args(args)?;
        Arguments::new(names, positional, named)
    }

    /// The argument, when it was given and is not none.
    pub fn get(&self, index: usize) -> Option<&Value> {
        self.values[index].as_ref().filter(|value| !value.is_none())
    }

    pub fn text(&self, index: usize) -> Result<Option<&str>, Error> {
        self.get(index).map(|value| self.check_text(index, value)).transpose()
    }

    pub fn required_text(&self, index: usize) -> Result<&str, Error> {
        match &self.values[index] {
            Some(value) => self.check_text(index, value),
            None => Err(Error::new(ErrorKind::MissingArgument, self.names[index])),
        }
    }

    pub fn integer(&self, index: usize, default: i64) -> Result<i64, Error> {
        self.get(index).map_or(Ok(default), |value| i64::try_from(value.clone()))
    }

    pub fn is_true(&self, index: usize) -> bool {
        self.get(index).is_some_and(Value::is_true)
    }

    /// All that were given, by name.
    pub fn into_kwargs(self) -> Kwargs {
        let given = self.names.iter().zip(self.values);
        given.filter_map(|(name, value)| Some((*name, value?))).collect()
    }

    fn check_text<'a>(&self, index: usize, value: &'a Value) -> Result<&'a str, Error> {
        value.as_str().ok_or_else(|| {
            let message = format!("{} has to be a string, not {}", self.names[index], value.kind());
            Error::new(ErrorKind::InvalidOperation, message)
        })
    }
}
