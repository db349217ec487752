"""Calls of an object without a tuple and a dict of the arguments: CPython's vectorcall protocol.

Cython fills a class's tp_call, for which CPython makes both. A class with a vectorcall function
gets the arguments as they lie on the caller's stack.
"""

from cpython.ref cimport PyObject


cdef extern from *:
    """
    /* Instances of this class have their vectorcall function at this offset. tp_call stays and must
     * do the same. */
    static void use_vectorcall(PyObject *type, Py_ssize_t offset) {
      ((PyTypeObject *)type)->tp_vectorcall_offset = offset;
      ((PyTypeObject *)type)->tp_flags |= Py_TPFLAGS_HAVE_VECTORCALL;
      PyType_Modified((PyTypeObject *)type);
    }

    /* The call by tp_call: for arguments that are rare or wrong. */
    static PyObject *call_by_tuple(PyObject *self, PyObject *const *args, size_t nargsf,
                                   PyObject *names) {
      const Py_ssize_t n = PyVectorcall_NARGS(nargsf);
      const Py_ssize_t named = names ? PyTuple_GET_SIZE(names) : 0;
      PyObject *result = NULL, *keywords = NULL, *tuple = PyTuple_New(n);
      if (!tuple || (named && !(keywords = PyDict_New()))) goto done;
      for (Py_ssize_t i = 0; i < n; i++) {
        Py_INCREF(args[i]);
        PyTuple_SET_ITEM(tuple, i, args[i]);
      }
      for (Py_ssize_t i = 0; i < named; i++)
        if (PyDict_SetItem(keywords, PyTuple_GET_ITEM(names, i), args[n + i])) goto done;
      result = Py_TYPE(self)->tp_call(self, tuple, keywords);
    done:
      Py_XDECREF(tuple);
      Py_XDECREF(keywords);
      return result;
    }
    """
    ctypedef object (*vectorcallfunc)(object, PyObject *const *, size_t, PyObject *)
    Py_ssize_t PyVectorcall_NARGS(size_t)
    void use_vectorcall(object type, Py_ssize_t offset)
    object call_by_tuple(object, PyObject *const *, size_t, PyObject *)
    Py_ssize_t names_count "PyTuple_GET_SIZE"(PyObject *)
    PyObject *name_at "PyTuple_GET_ITEM"(PyObject *, Py_ssize_t)
