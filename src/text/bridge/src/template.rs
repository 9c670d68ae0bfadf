//! Chat templates: minijinja set up as transformers sets up jinja2, within limits of time, memory
//! and stack.

use std::error::Error as _;
use std::ffi::c_void;
use std::os::raw::c_char;

use minijinja::syntax::SyntaxConfig;
use minijinja::{AutoEscape, Environment, Error, ErrorKind, UndefinedBehavior, Value};

use crate::abi::{guard, send, text, Failure, Kind, NibbleError, TextSink};
use crate::python::Reason;
use crate::{clock, filters, methods, python, source, stored};

const NAME: &str = "template";
const MAX_TEMPLATE_BYTES: usize = 256 << 10;
/// minijinja recurses over chains of operators and nested values, without a limit.
const STACK_BYTES: usize = 256 << 20;
/// One unit is an instruction or 64 bytes.
const BASE_FUEL: u64 = 1_000_000;
const FUEL_PER_INPUT_BYTE: u64 = 4;

pub struct NibbleTemplate {
    environment: Environment<'static>,
}

/// Runs `body` on a thread whose stack is deep enough for whatever fits the size limit.
fn on_deep_stack<T: Send>(body: impl FnOnce() -> Result<T, Failure> + Send) -> Result<T, Failure> {
    std::thread::scope(|scope| {
        std::thread::Builder::new()
            .stack_size(STACK_BYTES)
            .spawn_scoped(scope, body)
            .map_err(|error| {
                Failure::new(Kind::Runtime, format!("cannot start a thread: {error}"))
            })?
            .join()
            .unwrap_or_else(|payload| Err(Failure::from_panic(payload)))
    })
}

fn kind_of(error: &Error) -> Kind {
    let of_undefined = error.detail().is_some_and(|detail| {
        detail.contains("unsupported types undefined") || detail.ends_with("and undefined")
    });
    match error.kind() {
        ErrorKind::SyntaxError
        | ErrorKind::BadEscape
        | ErrorKind::UnknownFilter
        | ErrorKind::UnknownTest => Kind::Syntax,
        ErrorKind::UndefinedError | ErrorKind::UnknownFunction | ErrorKind::UnknownMethod => {
            Kind::Undefined
        }
        _ if of_undefined => Kind::Undefined,
        _ => Kind::Runtime,
    }
}

fn failure(error: Error) -> Failure {
    let mut kind = kind_of(&error);
    let mut cause = error.source();
    while let Some(inner) = cause {
        if let Some(Reason(reason)) = inner.downcast_ref::<Reason>() {
            kind = *reason;
        }
        cause = inner.source();
    }
    let message = match error.kind() {
        ErrorKind::OutOfFuel => "rendering takes too long or too much memory".into(),
        kind => error.detail().map_or_else(|| kind.to_string(), str::to_string),
    };
    Failure { kind, line: error.line().unwrap_or(0) as u32, message }
}

fn compile(
    source: &str,
    trim_blocks: bool,
    lstrip_blocks: bool,
) -> Result<NibbleTemplate, Failure> {
    if source.len() > MAX_TEMPLATE_BYTES {
        let message = format!(
            "the template has {} bytes; at most {MAX_TEMPLATE_BYTES} are allowed",
            source.len()
        );
        return Err(Failure::new(Kind::Syntax, message));
    }
    let mut environment = Environment::new();
    let syntax =
        SyntaxConfig::builder().trim_blocks(trim_blocks).lstrip_blocks(lstrip_blocks).build();
    environment.set_syntax(syntax.map_err(failure)?);
    environment.set_auto_escape_callback(|_| AutoEscape::None);
    environment.set_undefined_behavior(UndefinedBehavior::Lenient);
    environment.set_formatter(python::format_value);
    environment.set_unknown_method_callback(methods::unknown_method);
    filters::install(&mut environment);
    stored::install(&mut environment);
    environment.add_template_owned(NAME, source::adapted(source)?).map_err(failure)?;
    Ok(NibbleTemplate { environment })
}

fn render(template: &NibbleTemplate, context: &str, wall_clock_s: i64) -> Result<String, Failure> {
    let variables: Value = serde_json::from_str(context)
        .map_err(|error| Failure::new(Kind::Runtime, format!("the variables: {error}")))?;
    let mut environment = template.environment.clone();
    let fuel = BASE_FUEL + FUEL_PER_INPUT_BYTE * context.len() as u64;
    environment.set_fuel(Some(fuel));
    stored::set_budget(fuel);
    environment
        .add_function("strftime_now", move |format: &str| clock::strftime(format, wall_clock_s));
    let result = environment.get_template(NAME).and_then(|template| template.render(variables));
    result.map_err(failure)
}

/// # Safety
/// See bridge.h.
#[no_mangle]
pub unsafe extern "C" fn nibble_template_load(
    source: *const c_char,
    size: usize,
    trim_blocks: bool,
    lstrip_blocks: bool,
    error: *mut NibbleError,
) -> *mut NibbleTemplate {
    guard(error, || {
        let source = text(source, size)?;
        on_deep_stack(|| compile(source, trim_blocks, lstrip_blocks))
    })
    .map_or(std::ptr::null_mut(), |template| Box::into_raw(Box::new(template)))
}

/// # Safety
/// See bridge.h.
#[no_mangle]
pub unsafe extern "C" fn nibble_template_free(template: *mut NibbleTemplate) {
    if !template.is_null() {
        drop(Box::from_raw(template));
    }
}

/// # Safety
/// See bridge.h.
#[no_mangle]
pub unsafe extern "C" fn nibble_template_render(
    template: *const NibbleTemplate,
    context: *const c_char,
    size: usize,
    wall_clock_s: i64,
    sink: TextSink,
    target: *mut c_void,
    error: *mut NibbleError,
) -> bool {
    guard(error, || {
        let template = &*template;
        let context = text(context, size)?;
        let rendered = on_deep_stack(|| render(template, context, wall_clock_s))?;
        send(&rendered, sink, target);
        Ok(())
    })
    .is_some()
}
