//! strftime, as Python's: the C library's.

use std::ffi::CString;

use minijinja::Error;

use crate::python::runtime;

const MAX_BYTES: usize = 4096;

/// `wall_clock_s`: local time as seconds since 1970 began.
pub fn strftime(format: &str, wall_clock_s: i64) -> Result<String, Error> {
    // The space makes an empty result differ from one that does not fit.
    let format = CString::new(format!("{format} "))
        .map_err(|_| runtime("strftime_now: the format contains a zero byte"))?;
    let mut buffer = vec![0u8; MAX_BYTES];
    // SAFETY: gmtime_r fills `fields`, of which every bit pattern is valid; strftime writes at most
    // the buffer's size.
    let size = unsafe {
        let mut fields: libc::tm = std::mem::zeroed();
        libc::gmtime_r(&wall_clock_s, &mut fields);
        libc::strftime(buffer.as_mut_ptr().cast(), buffer.len(), format.as_ptr(), &fields)
    };
    if size == 0 {
        return Err(runtime("strftime_now: the result is too long"));
    }
    buffer.truncate(size - 1);
    Ok(String::from_utf8_lossy(&buffer).into_owned())
}
